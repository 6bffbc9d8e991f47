"""`python -m launch doctor`: is this cluster sound, and what will a run do on it? (docs/doctor.md)

    command.py    its command line, and the order of the steps
    nodes.py      runs a step on every node and collects one answer a node
    node.py       the process of one step on one node
    steps/        what is measured, one module a step: facts in, facts out, no judgement
    findings/     pure: facts of all nodes -> findings, and the forecast of a run
    report.py     a table, or JSON

No shared file system is assumed: a request travels in the command line, an answer on standard
output. Every step is a process of its own, because what hangs (a driver, a mount, a collective)
cannot be interrupted from within.
"""
