"""Make ImageNet-100 from ImageNet-1K; --help says how."""

from varcon_plugin.commands.imagenet100 import main

if __name__ == "__main__":
    main()
