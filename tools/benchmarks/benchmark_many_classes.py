"""What do really many classes teach? --help says how."""

from varcon_plugin.commands.benchmarks.many_classes import main

if __name__ == "__main__":
    main()
