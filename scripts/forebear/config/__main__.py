"""Print every key of the config: `python -m forebear.config`."""

from forebear.config.reading import reference

if __name__ == "__main__":
    print(reference())
