"""Put reports of tools/evaluate.py side by side; --help says how."""

from varcon_plugin.commands.compare import main

if __name__ == "__main__":
    main()
