"""The documentation site, and what makes and checks it (:mod:`docs.code`)."""
