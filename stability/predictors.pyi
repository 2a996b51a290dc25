from .leave_one_out.predictors import *  # noqa: F403
