"""`Run`: the one door to an output for whoever makes samples. The protocol is explained in docs/commit-protocol.md.

A driver (one process) and any number of workers (processes, machines) make a run:

    units = [Unit(unit="9f3c...", key="0a1b2c3d4e5f-0000", uri="s3://in/a.mp4", start_s=0.0, end_s=5.0, payload="{}")]
    with Run.open("out/", name="metaworld", config=config) as run:   # takes the lease; RunMismatch when config differs
        run.extend(units)                      # a new immutable plan generation with the units not planned yet
        for unit in run.todo():                # planned - committed - quarantined - spooled, in plan order
            try:
                run.spool.put(unit, members)   # {member name: bytes}; `run.spool` is picklable: send it to workers
            except ClipError as error:
                run.spool.quarantine(unit, stage="decode", reason="no_video_stream", traceback="...", attempts=2)
            run.commit_ready()                 # every shard whose units are all decided becomes tar + commit record
        summary = run.finish()                 # commits the rest, rebuilds the index, drops used work files

Nothing is lost whatever dies: open the same output again and go on. Tar bytes depend on the plan, the samples and the
limits alone, never on the order of completion or on restarts.
"""
