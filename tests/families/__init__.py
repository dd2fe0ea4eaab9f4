"""Chat templates of model families, and random conversations that prove or refute what a codec makes of them."""
