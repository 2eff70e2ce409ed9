"""Write the tables and pictures of docs/evidence.md; --help says how."""

from varcon_plugin.commands.evidence import main

if __name__ == "__main__":
    main()
