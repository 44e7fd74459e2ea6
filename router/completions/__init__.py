"""Our worker as a server of OpenAI completions: `smallcall engine serve`."""
