"""Try the recipes on the original OpenMMLab releases; --help says how."""

from varcon_plugin.commands.try_upstream import main

if __name__ == "__main__":
    main()
