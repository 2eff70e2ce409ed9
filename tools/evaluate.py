"""Evaluate a frozen encoder; --help says how."""

from varcon_plugin.commands.evaluate import main

if __name__ == "__main__":
    main()
