"""The command line: names become objects, and what they measure becomes text.

Each command is a function in a file of its own name. Its options are dataclasses (:mod:`.groups`), which
:mod:`.parsing` hands to cyclopts; a study written as a file is read by :mod:`.study_file`.
"""
