"""The live page of a stream: what it judges, its health, and its thresholds, in a browser.

    stream  ──> board ──> lane per camera, kept parts     counts and references, in microseconds
    browser ──> server ──> guard ──> app ──> snapshots of the board, pictures, the threshold desk

    rejected and good parts  ──> collection ──> teaching job, a process ──> the bundle's place

The stream never waits for the page. It leaves its newest frames on the board, where each takes the
place of the one before; whatever takes time is done by the threads of the server, and only while a
browser asks for it.
"""
