"""Studies whose results the repository keeps."""
