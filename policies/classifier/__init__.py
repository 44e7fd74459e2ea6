"""The probability that a draft is right: fitted with scikit-learn, stored as JSON, computed with numpy."""
