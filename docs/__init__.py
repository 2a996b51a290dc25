"""The documentation site, and the programs that check and make parts of it (:mod:`docs.code`)."""
