"""Pages of exports: a project's data set with its preview, and snapshots."""
