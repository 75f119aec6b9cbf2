"""launch/search.py with a space of two settings: a process of its own, to be killed, or beside others."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "launch"))

import search

SPACE = {"optim.learning_rate": ("log", 1e-4, 1e-1), "data.batch_size": ("one of", 4, 8)}

if __name__ == "__main__":
    search.SPACES = {"mixer baseline": SPACE}
    search.main()
