"""The process that hosts the engine: its socket server and its scheduler."""
