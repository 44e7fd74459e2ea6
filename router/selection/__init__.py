"""Which policy decides: the bundle in service, an experiment's arm or the conversation's earlier choice."""
