"""How each named system is trained: one file a system over ``base.json``; see `files`."""
