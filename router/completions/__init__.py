"""Our worker served as an OpenAI completions endpoint."""
