"""``python -m streamadapt``: the command line."""

if __name__ == "__main__":
    from streamadapt.app.cli import main

    main()
