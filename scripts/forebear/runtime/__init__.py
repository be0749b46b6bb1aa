"""What every job does around its work, and what cannot change a result: logs, devices, progress, files that appear whole."""
