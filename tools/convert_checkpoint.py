"""Convert a checkpoint; --help says how."""

from varcon_plugin.commands.convert import main

if __name__ == "__main__":
    main()
