"""From files in any layout to rows with ids, and back out to the files that trainers read."""
