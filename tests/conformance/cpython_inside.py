# SPDX-License-Identifier: MIT
"""Runs in the tested interpreter: `cpython_inside.py RECORDS SECONDS ARGUMENTS…`, the arguments as for python -m test. Appends to the file
RECORDS one JSON line when a test begins and one for its outcome, so that a test that never ends is known by name. A test that takes longer
than SECONDS has all stacks printed and ends the process."""

import faulthandler
import json
import os
import sys
import traceback

# Set by main(): multiprocessing's spawned children import this file, too. Forked ones inherit them and are told by their pid.
main_pid = None
records = None
seconds = None


def record(test_id, status, detail=""):
    if os.getpid() != main_pid:
        return
    line = json.dumps({"id": test_id, "status": status, "detail": detail[-4000:]}) + "\n"
    fd = os.open(records, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(fd, line.encode())
    os.close(fd)


def arm():
    if os.getpid() == main_pid:
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)


def recording(base):
    """The result class that regrtest uses, and what we write down of it."""

    class Recording(base):
        def startTest(self, test):
            record(test.id(), "started")
            arm()
            super().startTest(test)

        def stopTest(self, test):
            super().stopTest(test)
            arm()

        def addSuccess(self, test):
            record(test.id(), "pass")
            super().addSuccess(test)

        def addExpectedFailure(self, test, err):
            record(test.id(), "pass")
            super().addExpectedFailure(test, err)

        def addSkip(self, test, reason):
            record(test.id(), "skip", reason)
            super().addSkip(test, reason)

        def addFailure(self, test, err):
            record(test.id(), "fail", "".join(traceback.format_exception(*err)))
            super().addFailure(test, err)

        def addError(self, test, err):
            record(test.id(), "fail", "".join(traceback.format_exception(*err)))
            super().addError(test, err)

        def addSubTest(self, test, subtest, err):
            if err is not None:
                record(test.id(), "fail", f"{subtest}\n" + "".join(traceback.format_exception(*err)))
            super().addSubTest(test, subtest, err)

        def addUnexpectedSuccess(self, test):
            record(test.id(), "fail", "unexpected success")
            super().addUnexpectedSuccess(test)

    return Recording


def main():
    global main_pid, records, seconds
    main_pid, records, seconds = os.getpid(), sys.argv[1], float(sys.argv[2])
    sys.path.pop(0)
    sys.argv[1:] = sys.argv[3:]
    from test.support import testresult

    testresult.RegressionTestResult = recording(testresult.RegressionTestResult)
    from test.libregrtest import main as regrtest

    arm()
    regrtest()


if __name__ == "__main__":
    main()
