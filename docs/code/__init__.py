"""What the site is made with: pages read as blocks, outputs of their commands, and hooks of mkdocs."""
