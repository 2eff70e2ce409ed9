"""Compare methods that learn without labels; --help says how."""

from varcon_plugin.commands.self_supervised import main

if __name__ == "__main__":
    main()
