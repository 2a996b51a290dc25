from .leave_one_out.perturbations import *  # noqa: F403
