"""A job that waits to be interrupted and then says so."""

import time

if __name__ == "__main__":
    try:
        print("waiting", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
