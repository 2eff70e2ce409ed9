"""Attack the promises of docs/reliability.md; --help says how."""

from varcon_plugin.commands.chaos import main

if __name__ == "__main__":
    main()
