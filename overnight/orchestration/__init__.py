"""The steps of one run: submitted, run in children, watched, and reported."""
