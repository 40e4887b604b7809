"""A two-stage classifier of scikit-learn's digits: small enough to train whole runs in tests."""
