"""Commands on MLflow's registry: register the best model as challenger, promote it to champion, roll back."""

from pipeline.ops.gate import PromoteConfig
from pipeline.promote.champion import Decision, decide, go_back, history, promote, rollback
from pipeline.promote.registering import LEADERBOARD, leaderboard, register

__all__ = [
    "LEADERBOARD", "Decision", "PromoteConfig", "decide", "go_back", "history", "leaderboard", "promote", "register",
    "rollback",
]  # fmt: skip
