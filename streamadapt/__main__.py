"""``python -m streamadapt``: the command line."""

from streamadapt.app.cli import main

if __name__ == "__main__":
    main()
