"""Signals of a request, a draft and its tokens as one vector with named places."""
