"""Run folders: stages with manifests, reuse of other runs, the tables that stages write, the selection."""
