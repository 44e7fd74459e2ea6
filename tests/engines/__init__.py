"""What every engine of the small side must do: the same checks for our worker, our endpoint and others' servers."""
