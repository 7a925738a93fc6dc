import sys,time,gc
sys.path.insert(0,'/work/main')
exec(open('/tmp/prof2.py').read().split("check_text(S+")[0])
def test_a():
    check_text(S+"p=p-g\n")
    print(sys.gettrace(), sys.getprofile(), sys.getrecursionlimit())
    for f in (lambda:0, gc.freeze, gc.disable):
        f()
        a=time.process_time(); check_text(T); print(f, time.process_time()-a)
