from .leave_one_out.loops import *  # noqa: F403
