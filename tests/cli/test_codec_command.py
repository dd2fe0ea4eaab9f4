"""`rollout-service codec`: what is learned of a model's chat template."""

from __future__ import annotations

import json
import shutil

from rollout_service.chat.codec import EMBEDDED_TOKENIZER
from tests.support.commands import command


def test_codec_shows_what_was_learned_a_conversation_with_its_mask_and_what_was_proved():
    done = command("codec")
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.replace("│", " ").split())
    assert "a turn with calls ends with <|im_end|>" in shown
    assert "a call is a JSON object with name and arguments" in shown
    assert "1 36 <tool_call>" in shown
    assert "two tool calls in one turn the same tokens" in shown


def test_a_template_that_cannot_be_followed_ends_the_command_with_the_reason(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED_TOKENIZER, folder)
    for file in folder.glob("chat_template*"):
        file.unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    done = command("codec", str(folder))
    assert done.returncode == 2
    assert "Error: The chat template of" in done.stderr


def test_a_template_argument_without_a_value_is_refused():
    done = command("codec", "--template-arguments", "enable_thinking")
    assert done.returncode == 2
    assert "Write --template-arguments enable_thinking=false" in done.stderr
