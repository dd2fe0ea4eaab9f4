"""Everything that is deployed: the policy behind Ray Serve, its engines, and the entry point of a cluster job."""
