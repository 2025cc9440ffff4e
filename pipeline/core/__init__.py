"""The frame: what is the same for every stage, and shows in no result."""
