from .leave_one_out.estimators import *  # noqa: F403
