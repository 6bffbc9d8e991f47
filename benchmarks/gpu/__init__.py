"""What a machine with GPUs must show, in stages: is it right, and how fast is it?

    python -m benchmarks.gpu [--out DIR] [--stages NAME ...] [--minutes N]       or: make gpu
    python -m benchmarks.gpu --minutes 12       the most important stages, where time is short
    python -m benchmarks.gpu --tiny             the same code with tiny encoders, also on a CPU

Nothing is downloaded: data and weights are made up. Each stage prints its verdict, and the next one
follows whatever it was. DIR (build/gpu) keeps what was found: the same command continues, and a
stage that is done and did not fail is not repeated. DIR/results.json and DIR/results.md have all of
them. Without a GPU a stage runs on CPU processes, and its verdict is "not run".
"""
