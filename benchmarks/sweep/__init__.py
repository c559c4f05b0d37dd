"""The sweep: methods, backbones, data sets and seeds trained, then measured in several engines.

Everything is in one folder, from which a run that was ended continues:

    plan.json               what was asked
    trained/CELL/           the bundle of a cell, with CELL.json (its facts, or why it failed),
                            CELL.pt (the checkpoint) and CELL.log (the messages)
    measured/CELL.json      one row for each engine and precision
    robustness/CELL.json    the same test images after changes, on request
    speed/DATA.json         the bundles of a data set in turns: latency, FPS, energy
    report.html, ...        written from the files above

A cell is a training: METHOD-BACKBONE-DATA-SEED, with "none" for a method without a backbone.
"""
