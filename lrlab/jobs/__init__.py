"""Jobs: one file each, with `run(config, workdir, options)`; `job.name` names the file."""
