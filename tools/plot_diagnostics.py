"""Draw what the diagnostics recorded; --help says how."""

from varcon_plugin.commands.plot import main

if __name__ == "__main__":
    main()
