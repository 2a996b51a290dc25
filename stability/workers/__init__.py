"""Work in other processes: those of this machine (:mod:`.pools`), or those of a cluster of Ray (:mod:`.cluster`).

What they compute is a :class:`.pools.Job`: a cell of a study, or a portion of the retrainings of one measurement. A
:class:`.pools.Pool` takes some jobs at once, and gives back what came of each, or says that its process was lost.
"""
