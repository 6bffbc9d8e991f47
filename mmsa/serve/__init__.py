"""`python -m mmsa serve EXPORT`: a model behind HTTP, and a page for people.

    options     what an operator decides: limits, times, places
    command     the command line; imports FastAPI only when it runs
    server      one process: starts, drains on SIGTERM, ends with 0
    app         the routes; gate: what every request passes (token, limits, log, counters)
    bodies      bytes of a request -> posts; problems: errors as problem+json
    model       an export, split into preparing a row and computing a batch
    micro_batches   rows that wait together are computed together
    service     one request from its body to its answer; reload: a newer best export
    image_folder, training   POST /test_model and POST /train_model, off by default
    page        the page at /

A request's way: `gate` -> `service` reads its body -> a decoding thread makes a row of it ->
`micro_batches` -> the compute thread -> the answer.
"""
