"""The commands that fit, tune, train, report and study."""
