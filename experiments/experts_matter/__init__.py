"""Do other clients' prompts matter? A benchmark on which that can be told, and its paired tests. See README.md."""
